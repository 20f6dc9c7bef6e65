from dataclasses import replace

import pytest
from transformers import TrainerControl, TrainerState

from internvl.errors import CheckpointError
from internvl.train.run.state import STATE_FILE, RepeatedFailure, RunJournal, RunState, read_run_state


def test_a_folder_without_a_state_is_new(tmp_path):
    assert read_run_state(tmp_path) is None
    assert read_run_state(tmp_path / "nowhere") is None


def test_a_state_survives_writing(tmp_path):
    state = RunState("preempted", attempt=3, step=7, failed_step=2, checkpoint="checkpoint-7")
    RunJournal(tmp_path / "new", state, writes="main")
    assert read_run_state(tmp_path / "new") == state
    assert [path.name for path in (tmp_path / "new").iterdir()] == [STATE_FILE]


@pytest.mark.parametrize("content", ["", "{", '{"color": 1}', "[1]", '{"step": "3"}', '{"attempt": true}',
                                     '{"checkpoint": "../x"}', '{"checkpoint": ""}', '{"status": "asleep"}',
                                     '{"step": NaN}', '{"epochs": []}', "[" * 100_000])  # fmt: skip
def test_a_damaged_state_is_explained(tmp_path, content):
    (tmp_path / STATE_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=r"^[^\n]*run_state.json is damaged.*delete it"):
        read_run_state(tmp_path)


def test_the_next_attempt_knows_where_this_one_died():
    following = RunState(attempt=2, failed_step=9, checkpoint="checkpoint-8", starts_without_progress=2)
    assert RunState(step=9, checkpoint="checkpoint-8").next_attempt() == following
    assert RunState("preempted", step=9).next_attempt() == RunState(attempt=2)


def die(state, *, step):
    """The state of the start after one that died in a step."""
    return replace(state, step=step).next_attempt()


def test_starts_that_die_without_a_new_checkpoint_come_to_an_end_whichever_steps_they_die_in():
    state = RunState()
    for step in (7, 9):
        state = die(state, step=step)
    reason = r"3 starts in a row died without a new checkpoint, the last ones in step 9 and in step 7.*delete run_state"
    with pytest.raises(RepeatedFailure, match=reason):
        die(state, step=7)
    with pytest.raises(RepeatedFailure, match="the last ones while loading,"):
        die(die(die(RunState(), step=0), step=0), step=0)


def save(tmp_path, state, *, step):
    journal = RunJournal(tmp_path, state, writes="main")
    journal.note_checkpoint(step)
    return journal.state


def test_a_checkpoint_further_on_is_progress(tmp_path):
    state = RunState()
    for step in range(4, 40, 4):
        state = die(die(save(tmp_path, state, step=step), step=step + 1), step=step + 2)
    assert state.attempt == 19


def test_writing_the_same_checkpoint_again_is_not(tmp_path):
    state = RunState(checkpoint="checkpoint-8")
    with pytest.raises(RepeatedFailure, match="3 starts"):  # noqa: PT012
        for _ in range(4):
            state = die(save(tmp_path, state, step=8), step=9)


def test_being_preempted_in_between_counts_from_the_beginning():
    state = die(die(RunState(), step=7), step=7)
    assert replace(state, status="preempted").next_attempt().starts_without_progress == 1


@pytest.mark.parametrize(
    ("max_steps", "epochs", "is_done"), [(12, 9, True), (13, 1, False), (-1, 1, True), (-1, 1.5, False), (0, 2, False)]
)
def test_a_finished_run_that_is_made_longer_is_not_done(max_steps, epochs, is_done):
    finished = RunState("finished", step=12, epochs=1.0)
    assert finished.has_reached(max_steps=max_steps, epochs=epochs) == is_done
    assert not RunState(step=12, epochs=1.0).has_reached(max_steps=max_steps, epochs=epochs)


def test_a_run_that_was_finished_by_steps_is_not_done_by_epochs():
    assert not RunState("finished", step=12).has_reached(max_steps=-1, epochs=1)


def test_the_journal_follows_the_run(tmp_path):
    journal = RunJournal(tmp_path, RunState(attempt=2), writes="main")
    assert read_run_state(tmp_path) == RunState(attempt=2)
    state, control = TrainerState(global_step=4), TrainerControl()
    journal.on_step_begin(None, state, control)
    assert read_run_state(tmp_path).step == 5
    journal.note_checkpoint(5)
    journal.end("finished", step=5)
    finished = RunState("finished", attempt=2, step=5, checkpoint="checkpoint-5", starts_without_progress=0)
    assert read_run_state(tmp_path) == finished


def test_only_the_main_rank_writes(tmp_path):
    journal = RunJournal(tmp_path, RunState(), writes="never")
    journal.end("finished", step=5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "status"), [(CheckpointError, "stopped"), (KeyboardInterrupt, "stopped"), (RuntimeError, "running")]
)
def test_errors_of_the_user_are_no_failures_of_the_run(tmp_path, error, status):
    with pytest.raises(error), RunJournal(tmp_path, RunState(), writes="main"):
        raise error
    assert read_run_state(tmp_path).status == status
    assert (read_run_state(tmp_path).next_attempt().failed_step is None) == (status == "stopped")


def test_a_folder_out_of_reach_costs_the_note_only(tmp_path, caplog):
    output = tmp_path / "out"
    journal = RunJournal(output, RunState(), writes="main")
    (output / STATE_FILE).unlink()
    output.rmdir()
    output.write_text("in the way")
    journal.on_step_begin(None, TrainerState(global_step=4), TrainerControl())
    assert "run_state.json cannot be written" in caplog.text
