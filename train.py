"""Train a Faster R-CNN. Metrics and every epoch's checkpoint go to MLflow, the best to models/faster_rcnn."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import amounts
import commandline
import fetching
import workspace
from config import TrainConfig
from pace import Shares
from progress import Progress, say
from tracking.connection import store_uri

if TYPE_CHECKING:
    from engine import Step
    from live_run import LiveRun, Stopped
    from prepare import Job
    from resuming import Start

WAITING = 0.2  # the share of the steps' time from which on the wait for data is worth a word
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138}


def main(config: TrainConfig) -> str:
    """Train one run, or continue the run `config.resume`, and return its run ID; a dry run's summary."""
    if config.resume != "auto" or config.dry_run:
        return train(config)
    with workspace.name_taken(config.run_name, config.experiment, store_uri(workspace.ROOT)):
        return train(config)


def train(config: TrainConfig) -> str:
    """As main: the loop over epochs."""
    import resuming

    start = resuming.choose(config)
    if start.is_over:  # said before the heavy imports
        return already_finished(start)

    from live_run import LiveRun
    from prepare import prepare
    from provenance import log_beginning
    from report import log_first_samples

    job = prepare(start)
    config, position = job.config, job.position
    if config.dry_run:
        from rehearsal import rehearse

        return rehearse(job)
    if job.resumed and is_done(job) and resuming.has_finished(job.store, job.info.run_id):
        return already_finished(start)
    if shortage := job.forecast.shortage():
        say(f"warning: {shortage}")
    recovery = RecoveryClock(config.checkpoint_every)

    begins_at = {"epoch": position.epoch, "step": position.step, "best": position.best}
    live = LiveRun(
        job.store,
        job.info,
        resumed=job.resumed,
        position=begins_at,
        optimizer=job.optimizer,
        checkpoint_bytes=job.forecast.checkpoint_bytes,
    )
    with stop_on_signals() as stop, live as run, named_loss(run, job):
        log_beginning(run, job)
        say_where(job, run.pages)
        if not job.resumed:
            log_first_samples(run, job)
        if died_before_logging(run, job):
            validate_and_save(run, job)
        for epoch in range(position.epoch + 1, config.epochs):
            if is_done(job):
                break
            train_epoch(run, job, epoch, stop, recovery)
            if stop.asked:
                raise stopped(stop, job)
            validate_and_save(run, job)
            if stop.asked and not is_done(job):
                raise stopped(stop, job)
    say_result(job)
    return job.info.run_id


def train_epoch(run: "LiveRun", job: "Job", epoch: int, stop: "Stop", recovery: "RecoveryClock") -> None:
    """The steps that are left of an epoch, to its end, the run's, or where a signal stops it; then last.pth."""
    import engine
    from data.dataset import train_loader
    from prepare import snapshot

    config, position, plan = job.config, job.position, job.plan
    batches = job.order.batches(epoch)[position.batches_done :]
    loader = train_loader(job.dataset, batches, workers=config.workers, pin_memory=job.device.type == "cuda")
    steps = engine.train_steps(
        job.model,
        loader,
        job.optimizer,
        job.schedule,
        job.scaler,
        steps_done=position.step,
        seed=config.seed,
        device=job.device,
        amp=job.amp,
        clip_norm=config.clip_norm,
        accumulate=config.accumulate,
        average=job.average,
    )
    title = f"epoch {epoch} ({epoch + 1} of {config.epochs})"
    done, shares = position.batches_done // config.accumulate, Shares()
    with Progress(title, plan.steps_per_epoch, done=done, unit="steps") as progress:
        for step in steps:
            position.step, position.metrics = step.index, {}
            position.batches_done += step.batches
            run.at(epoch=position.epoch, step=step.index)
            if step.index % plan.log_every == 0:
                parts = step.watch.parts()
                shares.add(parts)
                run.log_step(step_metrics(step, parts, epoch), step.index)
            progress.step(loss=f"{step.losses['loss']:.3f}", images_per_s=f"{step.images / step.seconds:.1f}")
            if stop.asked or step.index == plan.last_step:
                break
            if recovery.due(step.index):
                run.saver.save_last(snapshot(job), share=True)
    say_shares(shares, config.workers)
    if position.batches_done == plan.batches_per_epoch:
        position.epoch, position.batches_done = epoch, 0
    # Before the validation, which may take longer than we have.
    run.saver.save_last(snapshot(job), share=stop.asked is not None)


def already_finished(start: "Start") -> str:
    """Say so, and send what the store has not yet got of the run; its ID, or a dry run's summary."""
    run_id, config, facts = start.run_id, start.config, start.facts
    longer = "--epochs" if config.max_steps is None else f"--max-steps (it was {config.max_steps})"
    if facts.get("step", 0) < facts.get("total_steps", 0):
        longer = f"--patience (it was {config.patience})"
    message = f"run {run_id} ({facts['run_name']}) is finished. To train longer raise {longer}"
    if config.dry_run:
        return message
    say(message)
    folder = workspace.RunFolder(run_id)
    if folder.state():
        workspace.deliver_pending(start.store, folder)
    return run_id


def is_done(job: "Job") -> bool:
    """Whether no step is left to do."""
    return job.position.step == job.plan.last_step or stopped_early(job)


def stopped_early(job: "Job") -> bool:
    return job.config.patience is not None and job.position.validations_since_best >= job.config.patience


def died_before_logging(run: "LiveRun", job: "Job") -> bool:
    """Whether the run was stopped between the last step of an epoch and the logging of its checkpoint."""
    position = job.position
    at_end = position.step > 0 and (position.batches_done == 0 or position.step == job.plan.last_step)
    return job.resumed and at_end and not run.saver.has_checkpoint(position.name)


def step_metrics(step: "Step", parts: dict[str, float], epoch: int) -> dict[str, float]:
    """One step under the keys it has in MLflow."""
    return {f"train/{name}": value for name, value in step.losses.items()} | {
        "train/lr": step.learning_rate,
        "train/grad_norm": step.gradient_norm,
        "train/images_per_second": step.images / step.seconds,
        "epoch": float(epoch),
        **{f"train/{part}_seconds": seconds for part, seconds in parts.items()},
    }


def validate_and_save(run: "LiveRun", job: "Job") -> None:
    """Score the weights on the validation split, note the best so far, and log and publish the checkpoint."""
    from evaluating.scoring import score
    from prepare import snapshot, validation_metrics
    from report import log_validation

    config, position = job.config, job.position
    is_last = position.step == job.plan.last_step
    scores: dict[str, float] = {}
    if is_last or (position.epoch + 1) % config.evaluate_every == 0:
        started = time.monotonic()
        scored = score(
            job.scored_model,
            job.data.records("val"),
            job.data.classes,
            batch_size=config.batch_size,
            workers=config.workers,
            device=job.device,
            amp=job.amp,
            title="validation",
            cache=job.val_cache,
        )
        scores = validation_metrics({"metrics": scored.metrics, "per_class": scored.per_class})
        improved = update_best(job, scores)
        ap, best = f"val/AP {scores['val/AP']:.4f}  val/AP50 {scores['val/AP50']:.4f}", position.best
        took = f"validated in {time.monotonic() - started:.1f} s"
        say(f"{position.name}  step {position.step}  {ap}  best {best['value']:.4f} ({best['name']})  {took}")
        if stopped_early(job):
            say(f"no better {config.best_metric} in {position.validations_since_best} validations: stopping early")
        for which in ("best", "last") if improved else ("last",):
            run.log_detections(f"{which}_val", scored.results)
    position.metrics = scores
    run.saver.log_checkpoint(position.name, snapshot(job), scores)
    if scores:
        log_validation(run, job, scored, improved=improved)


def update_best(job: "Job", scores: dict[str, float]) -> bool:
    """Make this checkpoint the best when its --best-metric beats the best so far; ties stay with the earlier one."""
    position, metric = job.position, job.config.best_metric
    value, best = scores[metric], job.position.best
    if best is not None and value <= best["value"] and best["step"] != position.step:
        if not position.metrics:  # else it is scored again, because the run died before it had logged that
            position.validations_since_best += 1
        return False
    position.validations_since_best = 0
    where = {"name": position.name, "epoch": position.epoch, "step": position.step}
    position.best = where | {"metric": metric, "value": value}
    return True


class RecoveryClock:
    """Says when the resumable last.pth is due in mid-epoch: every so many steps, or minutes."""

    def __init__(self, interval: str):
        self.unit, self.every = amounts.parse_interval(interval)
        self.saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        if self.unit == "steps":
            return step % self.every == 0
        if time.monotonic() - self.saved_at < self.every:
            return False
        self.saved_at = time.monotonic()
        return True


@dataclass
class Stop:
    """The signal that came, if any: the loop looks here between steps."""

    asked: signal.Signals | None = None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Let SIGINT, SIGTERM and SIGUSR1 (a cluster's preemption) finish the step first."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python hands signals to the main thread only
        return

    def note(number: int, frame: object) -> None:
        stop.asked = signal.Signals(number)
        say(f"{stop.asked.name}: finishing the step, then saving …")

    previous = {number: signal.signal(number, note) for number in EXIT_CODES}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stopped(stop: Stop, job: "Job") -> "Stopped":
    from live_run import Stopped

    where = f"step {job.position.step} of {job.plan.last_step}"
    message = f"stopped by {stop.asked.name} at {where}; continue: python train.py --resume {job.info.run_id}"
    return Stopped(message, EXIT_CODES[stop.asked])


@contextmanager
def named_loss(run: "LiveRun", job: "Job") -> Iterator[None]:
    """A non-finite loss names its images, boxes and losses, on the screen and on the run."""
    from engine import NonFiniteLoss

    try:
        yield
    except NonFiniteLoss as error:
        records = {record.image_id: record for record in job.data.records("train")}
        images = [records[image_id].name for image_id in error.image_ids]
        details = {"step": error.step, "epoch": job.position.epoch + 1, "images": images}
        details |= {"boxes": error.boxes, "losses": {name: str(value) for name, value in error.losses.items()}}
        run.tracked.text(json.dumps(details, indent=1), f"nonfinite/step-{error.step:06d}.json")
        where = f"epoch {job.position.epoch + 1}, images {', '.join(images)}"
        message = f"{error} ({where}). All losses and boxes are in the run's artifacts, under nonfinite/"
        raise NonFiniteLoss(message, step=error.step, losses=error.losses, targets=[]) from error


def say_where(job: "Job", pages: dict[str, str]) -> None:
    """Name the run and its pages before the first step: one wants to watch."""
    say(f"run {job.info.run_id} ({job.info.run_name}), experiment {job.info.experiment}")
    if "command" in pages:
        say(f"  watch it: {pages['command']}")
    say(f"  run: {pages['run']}\n  checkpoints: {pages['models']}\n  charts: {pages['experiment']}")


def say_shares(shares: Shares, workers: int) -> None:
    """Where the time of an epoch's steps went, and what to do where they waited for images."""
    more = f": more --workers ({workers}) or --cache 25% may help" if shares.of("data") > WAITING else ""
    if shares.seconds:
        say(f"  of the steps' time: {shares}{more}")


def say_result(job: "Job") -> None:
    best, run_id = job.position.best, job.info.run_id
    by = workspace.choosing(best)
    say(f"run {run_id} ({job.info.run_name}) is finished: best {best['metric']} {best['value']:.4f} in {best['name']}")
    say(f"  restore its best: python restore.py {run_id}{by}")
    split = " --split test" if "test" in job.data.splits else ""
    say(f"  score it: python evaluate.py --run {run_id}{by}{split}")


def configuration(run: str, experiment: str = TrainConfig.experiment) -> TrainConfig:
    """The configuration of a RUN, to repeat or vary it: train.main(replace(train.configuration(RUN), lr=0.01))."""
    import resuming

    return resuming.configuration(fetching.store_of(run), run, experiment)


def read() -> TrainConfig:
    """The options; with --resume RUN or --from-run that run's own configuration is the default."""
    asked = commandline.parse(TrainConfig)
    is_continuing = asked.resume not in (None, "auto")
    if is_continuing and asked.from_run is not None:
        raise commandline.ConfigError("--resume continues a run, --from-run starts one: choose one, or --resume auto")
    if asked.from_run is not None:
        stored = configuration(asked.from_run, asked.experiment)
        return replace(commandline.parse(TrainConfig, default=stored), from_run=stored.from_run)
    if is_continuing and (file := fetching.file_named(asked.resume)):
        import continuing

        return commandline.parse(TrainConfig, default=continuing.configuration(file, asked))
    if not is_continuing:  # with auto the line says everything: a cluster runs the same one again
        return asked
    import resuming

    store = fetching.store_of(asked.resume)
    stored = resuming.stored_config(store, resuming.run_id_of(store, asked.resume, asked.experiment))
    return commandline.parse(TrainConfig, default=replace(stored, resume=None, strict=False, dry_run=False))


def script(config: TrainConfig) -> int:
    print(main(config))
    return 0


if __name__ == "__main__":
    commandline.command(script, read)
