// Server-sent events: the data of each event of a stream of bytes.

/**
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<string>} the data of one event after another; comments and other fields are skipped
 */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    waiting += done ? "\n\n" : value;
    // A carriage return at the end waits for its line feed, which may come with the next bytes.
    const lines = waiting.split(/\r\n|\n|\r(?!$)/);
    waiting = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) {
        data.push(line.slice(5).replace(/^ /, ""));
      } else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
    if (done) return;
  }
}
