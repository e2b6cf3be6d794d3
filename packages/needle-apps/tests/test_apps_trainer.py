"""The loop: what it computes, what it tells, and that it goes on from anywhere bit for bit."""

import math

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.apps import schedules
from needle.apps.models import LanguageModel
from needle.apps.tasks import image_task, text_task
from needle.apps.trainer import (
    Callback,
    Checkpointer,
    DivergedError,
    Outcome,
    StepMetrics,
    StoppedError,
    Trainer,
)
from needle.data import BatchFlip, DataLoader, NDArrayDataset
from needle.optim import SGD, Adam

WORDS = np.random.RandomState(0).randint(0, 7, 130).tolist()


def text_trainer(seed=3, epochs=2, dropout=0.3, valid=True, **options):
    """A small language model: 8 windows an epoch, the last one shorter."""
    np.random.seed(seed)
    model = LanguageModel(5, 7, 6, 2, "lstm", dropout=dropout)
    texts = {"train": WORDS, "valid": WORDS[:40], "test": WORDS[40:90]}
    if not valid:
        del texts["valid"]
    task = text_task(model, texts, batch_size=4, seq_len=4, sum_steps=True)
    opt = SGD(model.parameters(), lr=0.5, momentum=0.5)
    return Trainer(task, opt, epochs, schedules.cosine(epochs), clip=0.5, **options)


def image_trainer(seed=3, epochs=2, **options):
    """A linear classifier of shuffled, flipped images: 5 batches an epoch."""
    np.random.seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3))
    random = np.random.RandomState(0)
    data = NDArrayDataset(random.rand(18, 3, 2, 2).astype("float32"), np.arange(18) % 3)
    loaders = {
        "train": DataLoader(data, 4, shuffle=True, batch_transforms=[BatchFlip()]),
        "test": DataLoader(data, 4),
    }
    opt = Adam(model.parameters(), lr=0.1, weight_decay=0.01)
    return Trainer(image_task(model, loaders), opt, epochs, **options)


trainers = pytest.mark.parametrize("make", [text_trainer, image_trainer], ids=["text", "images"])


class Recorder(Callback):
    """Writes down what it is told."""

    def __init__(self):
        self.steps, self.epochs, self.events, self.outcome = [], [], [], None

    def on_start(self, trainer):
        self.events.append("start")

    def on_step(self, metrics):
        self.steps.append(metrics)
        self.events.append("step")

    def on_measure(self, split, batches, score):
        if score.steps == batches:
            self.events.append(split)

    def on_epoch(self, metrics):
        self.epochs.append(metrics)
        self.events.append("epoch")

    def on_end(self, outcome):
        self.outcome = outcome
        self.events.append("end")

    def on_close(self):
        self.events.append("close")


class Memory(Checkpointer):
    """Keeps every state, and the model's with it."""

    def __init__(self, every=1):
        self.every, self.states, self.best = every, [], None

    def due(self, step):
        return step % self.every == 0

    def save(self, trainer, best=False):
        model = {name: t.numpy() for name, t in trainer.task.model.state_dict().items()}
        self.states.append((model, trainer.state()))
        if best:
            self.best = model

    def restore_best(self, trainer):
        trainer.task.model.load_state_dict(self.best)


def everything(trainer):
    """All arrays of a trainer, NumPy's generator included."""
    arrays = {name: t.numpy() for name, t in trainer.task.model.state_dict().items()}
    for name, value in trainer.opt.state_dict().items():
        arrays[f"optimizer {name}"] = np.asarray(
            value if isinstance(value, float) else value.numpy()
        )
    arrays["generator"] = np.random.get_state()[1]
    arrays["progress"] = np.array([trainer.at.epoch, trainer.at.batch, trainer.at.step])
    return arrays


def check_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@trainers
def test_it_goes_on_from_every_state_bit_for_bit(make):
    memory, told = Memory(), Recorder()
    whole = make(checkpoints=memory, callbacks=[told])
    outcome = whole.run()
    wanted = everything(whole)
    losses = {m.step: (m.epoch, m.batch, m.lr, m.loss, m.grad_norm) for m in told.steps}
    for model, state in memory.states:
        again = Recorder()
        trainer = make(seed=99, callbacks=[again])
        trainer.task.model.load_state_dict(model)
        trainer.restore(state)
        result = trainer.run()
        check_same(everything(trainer), wanted)
        for m in again.steps:
            assert losses[m.step] == (m.epoch, m.batch, m.lr, m.loss, m.grad_norm)
        assert {k: s.loss for k, s in result.measured.items()} == {
            k: s.loss for k, s in outcome.measured.items()
        }
        if again.epochs:  # a training score is of the whole epoch, whatever part was resumed
            assert again.epochs[-1].train.loss == told.epochs[-1].train.loss
            assert again.epochs[-1].train.examples == told.epochs[-1].train.examples


@trainers
def test_what_is_told_and_when(make):
    told = Recorder()
    trainer = make(callbacks=[told])
    outcome = trainer.run()
    n = trainer.task.batches("train")
    watched = "valid" if make is text_trainer else "test"
    epoch = [*(n * ["step"]), watched, "epoch"]
    last = ["test"] if make is text_trainer else []
    assert told.events == ["start", *epoch, *epoch, *last, "end", "close"]
    assert told.outcome is outcome
    assert [m.step for m in told.steps] == list(range(1, 2 * n + 1))
    assert [m.batch for m in told.steps] == 2 * list(range(1, n + 1))
    assert outcome.measured.keys() == ({"valid", "test"} if make is text_trainer else {"test"})
    assert math.isclose(told.steps[-1].score.loss, told.epochs[-1].train.loss)


def test_a_run_is_the_sum_of_its_steps():
    """Against a loop written out: rate, summed loss, clipping, state carried and zeroed."""
    told = Recorder()
    trainer = text_trainer(dropout=0.0, callbacks=[told])
    trainer.run()
    np.random.seed(3)
    model = LanguageModel(5, 7, 6, 2, "lstm")
    opt, step = SGD(model.parameters(), lr=0.5, momentum=0.5), 0
    rows = np.array(WORDS[:128]).reshape(4, 32).T
    for epoch in range(2):
        state = None
        for k, i in enumerate(range(0, 31, 4)):
            n = min(4, 31 - i)
            opt.lr = 0.5 * 0.5 * (1 + math.cos(math.pi * (epoch + k / 8) / 2))
            x = ndl.Tensor(rows[i : i + n], dtype="float32", requires_grad=False)
            y = ndl.Tensor(rows[i + 1 : i + 1 + n].reshape(-1), requires_grad=False)
            logits, (h, c) = model(x, state)
            state = (h.detach(), c.detach())
            loss = nn.SoftmaxLoss()(logits, y)
            opt.reset_grad()
            (loss * n).backward()
            norm = opt.clip_grad_norm(0.5)
            opt.step()
            metrics = told.steps[step]
            step += 1
            assert metrics.loss == pytest.approx(loss.item(), rel=1e-5)
            assert metrics.lr == pytest.approx(opt.lr)
            assert metrics.grad_norm == pytest.approx(norm, rel=1e-4)
    assert step == len(told.steps)
    for found, wanted in zip(trainer.task.model.parameters(), model.parameters(), strict=True):
        np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-6)


class StopAt(Callback):
    """Asks the trainer to stop in one of its events."""

    def __init__(self, event, nth=1):
        self.event, self.left = event, nth

    def on_start(self, trainer):
        self.trainer = trainer

    def _count(self, event):
        if event == self.event:
            self.left -= 1
            self.trainer.stop |= self.left == 0

    def on_step(self, metrics):
        self._count("step")

    def on_measure(self, split, batches, score):
        self._count(split)

    def on_epoch(self, metrics):
        self._count("epoch")


@pytest.mark.parametrize(
    ("event", "nth", "epoch"),
    [
        ("step", 3, 1),
        ("step", 8, 1),
        ("valid", 1, 1),
        ("epoch", 1, 2),
        ("valid", 4, 2),
        ("test", 2, 2),
    ],
)
def test_stopped_anywhere_it_has_saved_and_goes_on(event, nth, epoch):
    whole = text_trainer()
    wanted_outcome = whole.run()
    wanted = everything(whole)
    memory, told = Memory(every=1000), Recorder()
    stopped = text_trainer(checkpoints=memory, callbacks=[StopAt(event, nth), told])
    with pytest.raises(StoppedError, match=f"stopped in epoch {epoch} of 2"):
        stopped.run()
    assert told.events[-1] == "close"
    assert "end" not in told.events
    trainer = text_trainer(seed=99)
    model, state = memory.states[-1]
    trainer.task.model.load_state_dict(model)
    trainer.restore(state)
    outcome = trainer.run()
    check_same(everything(trainer), wanted)
    assert outcome.measured["test"].loss == wanted_outcome.measured["test"].loss


class ValidLoss(Callback):
    """Makes up validation losses."""

    def __init__(self, trainer, losses):
        task, measure = trainer.task, trainer.task.measure
        scripted = iter(losses)

        def made_up(split, observe=None):
            score = measure(split, observe)
            if split != "valid":
                return score
            return type(score)(1, score.examples * next(scripted), score.examples, 1, 1.0)

        object.__setattr__(task, "measure", made_up)


def test_early_stop_ends_with_the_best_weights():
    memory, told = Memory(every=1000), Recorder()
    trainer = text_trainer(epochs=9, early_stop=2, checkpoints=memory, callbacks=[told])
    ValidLoss(trainer, [3.0, 2.0, 2.5, math.nan, 9, 9])
    outcome = trainer.run()
    assert (outcome.epochs, outcome.best_epoch, outcome.stopped_early) == (4, 2, True)
    assert [m.best for m in told.epochs] == [True, True, False, False]
    found = {name: t.numpy() for name, t in trainer.task.model.state_dict().items()}
    check_same(found, memory.best)
    assert any(not np.array_equal(found[k], memory.states[-1][0][k]) for k in found)


def test_early_stop_needs_a_validation_split():
    with pytest.raises(ValueError, match="early_stop: no validation split: there are train, test"):
        text_trainer(valid=False, early_stop=2)


def test_no_epoch_is_best_without_validation():
    told = Recorder()
    outcome = text_trainer(valid=False, callbacks=[told]).run()
    assert [m.best for m in told.epochs] == [False, False]
    assert outcome.best_epoch is None


def test_a_loss_that_is_no_number_ends_the_run_before_the_update():
    told = Recorder()
    trainer = text_trainer(callbacks=[told])
    weight = trainer.task.model.linear.bias
    weight.data = ndl.Tensor(np.full(weight.shape, np.nan, "float32"))
    before = everything(trainer)
    with pytest.raises(DivergedError, match="loss is not finite: epoch 1, batch 1: lower"):
        trainer.run()
    assert told.events == ["start", "close"]
    after = everything(trainer)
    del before["generator"], after["generator"]  # dropout has drawn
    check_same(after, before | {"optimizer lr": after["optimizer lr"]})


def test_a_failing_callback_ends_the_run_and_files_are_closed():
    class Full(Callback):
        def on_step(self, metrics):
            raise OSError(28, "No space left on device")

    told = Recorder()
    with pytest.raises(OSError, match="No space left"):
        text_trainer(callbacks=[Full(), told]).run()
    assert told.events == ["start", "close"]


def test_a_finished_run_is_only_measured_again():
    trainer, told = text_trainer(), Recorder()
    outcome = trainer.run()
    trainer.callbacks = (told,)
    again = trainer.run()
    assert told.events == ["start", "valid", "test", "end", "close"]
    assert again.measured["test"].loss == outcome.measured["test"].loss


def test_records_are_flat_and_name_what_they_hold():
    told = Recorder()
    outcome = text_trainer(callbacks=[told]).run()
    assert isinstance(outcome, Outcome)
    assert isinstance(told.steps[0], StepMetrics)
    step, epoch, end = told.steps[0].record(), told.epochs[-1].record(), outcome.record()
    assert (step["event"], step["step"], step["lr"]) == ("step", 1, 0.5)
    assert epoch["train_loss"] == told.epochs[-1].train.loss
    assert epoch["valid_perplexity"] == math.exp(epoch["valid_loss"])
    assert end["test_perplexity"] == outcome.measured["test"].perplexity
    images = Recorder()
    image_trainer(callbacks=[images]).run()
    record = images.epochs[0].record()
    assert 0 <= record["test_accuracy"] <= 1
    assert "test_perplexity" not in record
