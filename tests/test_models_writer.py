"""Checkpoints written beside the training: what is written is the state at the call, and errors come through."""

import errno
import threading
from pathlib import Path

import pytest
import torch

from models.writer import Writer


@pytest.fixture
def writer():
    writer = Writer()
    yield writer
    writer.close()


def test_what_is_written_is_the_state_at_the_call(writer):
    """The weights change while the thread has not begun to write."""
    weight, go, written = torch.zeros(4), threading.Event(), []

    def write(copy):
        go.wait(10)
        written.append({"weight": copy["model_state_dict"]["weight"].clone(), "steps": list(copy["steps"])})

    steps = [1]
    writer.write({"model_state_dict": {"weight": weight}, "steps": steps}, write)
    weight.fill_(1.0)
    steps.append(2)
    assert written == []
    go.set()
    writer.wait()
    assert torch.equal(written[0]["weight"], torch.zeros(4))
    assert written[0]["steps"] == [1]


def test_the_next_write_waits_for_the_one_before(writer):
    """Both have the same buffers."""
    seen = []
    for number in range(3):
        weight = torch.full((1000, 100), float(number))
        writer.write({"weight": weight}, lambda copy: seen.append((copy["weight"].min().item(), copy["weight"])))
    writer.wait()
    assert [value for value, _ in seen] == [0.0, 1.0, 2.0]
    assert len({tensor.data_ptr() for _, tensor in seen}) == 1


def test_an_error_of_a_write_comes_with_the_next_call(writer):
    def full(copy):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer.write({}, full)
    with pytest.raises(OSError, match="No space left"):
        writer.write({}, list)
    writer.wait()  # said once


def test_a_copy_is_contiguous_and_follows_a_change_of_shape(writer):
    seen = []
    for shape in ((2, 3, 4, 4), (2, 5, 4, 4)):
        weight = torch.randn(shape).to(memory_format=torch.channels_last)
        writer.write({"weight": weight}, lambda copy: seen.append(copy["weight"]))
        writer.wait()
        assert seen[-1].is_contiguous()
        assert torch.equal(seen[-1], weight)


def test_a_checkpoint_holds_plain_data_only(writer):
    with pytest.raises(TypeError, match=r"checkpoint\.config\.path is a PosixPath"):
        writer.write({"config": {"path": Path("x")}}, list)


def test_weights_are_copied_while_the_loop_computes_and_the_step_waits():
    """The copying is held up until the loop is about to change the weights: what is written is from before that."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
    written, writer, go = [], Writer(optimizer), threading.Event()
    writer._executor.submit(go.wait, 10)  # the thread is busy

    def step() -> None:
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()

    before = [parameter.detach().clone() for parameter in layer.parameters()]
    state = {"model_state_dict": layer.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    writer.write(state, lambda copy: written.append(copy["model_state_dict"]))
    threading.Timer(0.3, go.set).start()
    step()
    assert go.is_set()  # the step waited
    writer.close()
    assert all(torch.equal(one, two) for one, two in zip(before, written[0].values(), strict=True))
    assert not torch.equal(before[0], layer.weight)
    step()  # a closed writer holds nobody up
