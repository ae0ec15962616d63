"""What tasks and Ray raise becomes a sentence: the user's mistake as it is, all else with what failed."""

import pytest
import ray

from slime_ray.errors import InputError, RunError
from slime_ray.on_ray.connection import errors_as_sentences
from slime_ray.training.outcome import StageError


def of_task(cause: Exception) -> ray.exceptions.RayTaskError:
    """What `ray.get` raises for a task that raised `cause`."""
    return ray.exceptions.RayTaskError("make", "Traceback ...", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (of_task(InputError("model.source x: there is no such path.")), InputError, "model.source x: there is no"),
        (of_task(StageError("The shared stages: full.")), RunError, "The shared stages: full."),
        (of_task(ValueError("7\nlines")), RunError, "The probe failed: ValueError: 7"),
        (ray.exceptions.WorkerCrashedError(), RunError, "The probe failed: "),
    ],
)
def test_what_is_raised_there_is_a_sentence_here(raised, kind, said):
    with pytest.raises(kind) as caught, errors_as_sentences("The probe failed"):
        raise raised
    assert str(caught.value).startswith(said)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_was_said_already_passes():
    with pytest.raises(RunError, match=r"^It was given up\.$"), errors_as_sentences("The probe failed"):
        raise RunError("It was given up.")
