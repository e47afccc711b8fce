"""The thread that generates: it owns the model, takes jobs from any thread and lets batches take turns."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from mxort.runtime.session import one_line
from mxort.serve.lanes import BATCH, EngineLane, GeneratorLane, Lane, Prompt, Step
from mxort.serve.text import TextStream

_SHORT = 32


@dataclass(frozen=True)
class Event:
    """What came out: text (maybe none), tokens generated so far, and how it ended once it has."""

    text: str = ""
    generated: int = 0
    finish: str = ""
    error: str = ""


@dataclass(eq=False)
class Job:
    """A request. ``deliver`` is called in the worker's thread, with an Event a token, the last with ``finish``."""

    prompt: Prompt
    deliver: Callable[[Event], None]
    cancelled: bool = False
    generated: int = 0
    text: TextStream | None = field(default=None, repr=False)


@dataclass
class _Running:
    lane: Lane
    jobs: dict[int, Job]
    engine: Any = None


class Worker:
    """Up to ``batches`` engines of one model. ``random``: tokens are drawn where a request does not say.

    Raises what genai raises for a model that its Engine cannot run.
    """

    def __init__(self, genai: Any, model: Any, tokenizer: Any, batches: int, *, random: bool) -> None:
        self._genai, self._model, self._tokenizer = genai, model, tokenizer
        self._batches, self._random = batches, random
        self._eos = [int(token) for token in tokenizer.eos_token_ids]
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: list[_Running] = []
        self._idle: list[Any] = []
        self._stopped = False
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(ready,), name="mxort-serve", daemon=True)
        self._thread.start()
        ready.result()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nothing more is delivered than what is on its way. Ended jobs may be cancelled too."""
        job.cancelled = True
        with self._changed:
            self._changed.notify()

    def counts(self) -> tuple[int, int]:
        """(running, waiting)."""
        return sum(len(each.jobs) for each in self._running), len(self._waiting)

    def close(self) -> None:
        """Ends the thread after the step that it is in. Jobs that are left get no more events."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _work(self, ready: Future[None]) -> None:
        try:
            # At once, so that a model that it cannot run fails when it is opened; here, for it belongs to its thread.
            self._idle.append(self._genai.Engine(self._model))
        except Exception as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        while True:
            with self._changed:
                while not (self._stopped or self._waiting or self._running):
                    self._changed.wait()
                if self._stopped:
                    break
            self._drop_cancelled()
            while len(self._running) < self._batches and (jobs := self._next_batch()):
                self._begin(jobs)
            for running in list(self._running):
                self._step(running)
        self._running.clear()
        self._idle.clear()

    def _drop_cancelled(self) -> None:
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
        for running in list(self._running):
            for place in [place for place, job in running.jobs.items() if job.cancelled]:
                self._drop(running, place)
            self._put_away(running)

    def _next_batch(self) -> list[Job]:
        """The job that has waited longest, and those that fit it: rows of a batch are padded to the longest prompt."""
        with self._changed:
            if not self._waiting:
                return []
            first = self._waiting.popleft()
            chosen = [first]
            if self._needs_seed(first):
                return chosen
            for job in list(self._waiting):
                if len(chosen) == BATCH:
                    break
                if not self._needs_seed(job) and _alike(first, job):
                    self._waiting.remove(job)
                    chosen.append(job)
            return chosen

    def _needs_seed(self, job: Job) -> bool:
        sampling = job.prompt.sampling
        chance = self._random if sampling.is_random is None else sampling.is_random
        return sampling.seed is not None and chance

    def _begin(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.text = TextStream(self._tokenizer.create_stream().decode, job.prompt.sampling.stop)
        engine = None
        try:
            if self._needs_seed(jobs[0]):
                lane: Lane = GeneratorLane(self._genai, self._model, jobs[0].prompt, self._eos)
            else:
                engine = self._idle.pop() if self._idle else self._genai.Engine(self._model)
                lane = EngineLane(self._genai, engine, [job.prompt for job in jobs])
        except Exception as error:  # genai's errors have no type of their own
            if len(jobs) == 1:
                jobs[0].deliver(Event(finish="error", error=one_line(error)))
                return
            for job in jobs:  # what one of them asks for must not be the end of the others
                self._begin([job])
            return
        self._running.append(_Running(lane, dict(enumerate(jobs)), engine))

    def _step(self, running: _Running) -> None:
        try:
            for step in running.lane.step():
                self._deliver(running, step)
        except Exception as error:
            for job in running.jobs.values():
                job.deliver(Event(generated=job.generated, finish="error", error=one_line(error)))
            running.jobs.clear()
            running.engine = None  # it is in an unknown state
        self._put_away(running)

    def _deliver(self, running: _Running, step: Step) -> None:
        job = running.jobs[step.place]
        assert job.text is not None
        text = ""
        if step.token is not None:
            job.generated += 1
            text = job.text.push(step.token)
        finish = "stop" if job.text.stopped else step.finish
        if finish:
            text += job.text.rest()
            if step.finish:
                del running.jobs[step.place]
            else:
                self._drop(running, step.place)
        job.deliver(Event(text, job.generated, finish, step.error))

    def _drop(self, running: _Running, place: int) -> None:
        del running.jobs[place]
        running.lane.drop(place)

    def _put_away(self, running: _Running) -> None:
        if running.jobs or running not in self._running:
            return
        self._running.remove(running)
        if running.engine is not None:
            self._idle.append(running.engine)


def _alike(a: Job, b: Job) -> bool:
    short, long = sorted((len(a.prompt.tokens), len(b.prompt.tokens)))
    return long <= max(_SHORT, 2 * short)
