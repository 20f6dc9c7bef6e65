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


@pytest.mark.parametrize("content", ["", "{", '{"color": 1}', "[1]"])
def test_a_damaged_state_is_explained(tmp_path, content):
    (tmp_path / STATE_FILE).write_text(content)
    with pytest.raises(CheckpointError, match="delete it"):
        read_run_state(tmp_path)


def test_the_next_attempt_knows_where_this_one_died():
    assert RunState(step=9, checkpoint="c").next_attempt() == RunState(attempt=2, failed_step=9, checkpoint="c")
    assert RunState("preempted", step=9).next_attempt() == RunState(attempt=2)


def test_dying_twice_in_the_same_step_is_the_end():
    again = RunState(attempt=2, step=9, failed_step=9)
    with pytest.raises(RepeatedFailure, match=r"failed in step 9 twice in a row.*delete run_state.json"):
        again.next_attempt()
    with pytest.raises(RepeatedFailure, match="while loading"):
        RunState(attempt=2, failed_step=0).next_attempt()


def test_dying_elsewhere_or_being_preempted_in_between_is_not():
    assert RunState(step=9, failed_step=8).next_attempt().failed_step == 9
    assert RunState("preempted", step=9, failed_step=9).next_attempt().failed_step is None


def test_the_journal_follows_the_run(tmp_path):
    journal = RunJournal(tmp_path, RunState(attempt=2), writes="main")
    assert read_run_state(tmp_path) == RunState(attempt=2)
    state, control = TrainerState(global_step=4), TrainerControl()
    journal.on_step_begin(None, state, control)
    assert read_run_state(tmp_path).step == 5
    state.global_step = 5
    journal.on_save(None, state, control)
    journal.end("finished", step=5)
    assert read_run_state(tmp_path) == RunState("finished", attempt=2, step=5, checkpoint="checkpoint-5")


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
