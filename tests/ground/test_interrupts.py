"""Tests of what is told to be due to Ctrl-C."""

import pytest

from llmroute_gym.ground.interrupts import due_to_interrupt


class HalfWritten:
    """A file whose end cannot be written once writing it was interrupted."""

    def __enter__(self) -> None:
        """Opens it."""

    def __exit__(self, *_: object) -> None:
        """Fails."""
        raise RuntimeError("unexpected position")


def test_an_error_while_an_interrupt_is_on_its_way_is_due_to_it() -> None:
    with pytest.raises(RuntimeError) as caught, HalfWritten():
        raise KeyboardInterrupt
    assert due_to_interrupt(caught.value)
    with pytest.raises(ValueError, match="told") as told:
        raise ValueError("told") from caught.value
    assert due_to_interrupt(told.value)


def test_an_error_of_its_own_is_not_due_to_an_interrupt() -> None:
    with pytest.raises(RuntimeError) as caught, HalfWritten():
        raise ValueError("full")
    assert not due_to_interrupt(caught.value)
