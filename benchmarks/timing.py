"""Interleaved timing in one process, and the peak of allocated memory."""

import gc
import statistics
import time
from collections.abc import Callable

import torch

Job = Callable[[], object]


def interleave(jobs: dict[str, Job], *, seconds: float) -> dict[str, list[float]]:
    """Times jobs in alternation, so that disturbances affect all of them; returns milliseconds for each round.

    Every timed run follows an untimed one of the same job, without garbage collection.
    """
    for job in jobs.values():
        job()
        job()
    start = time.perf_counter()
    for job in jobs.values():
        job()
    rounds = max(7, min(200, int(seconds / (2 * (time.perf_counter() - start)))))

    times: dict[str, list[float]] = {name: [] for name in jobs}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, job in jobs.items():
                job()  # untimed, to restore caches and memory after the job before
                start = time.perf_counter()
                job()
                times[name].append(1e3 * (time.perf_counter() - start))
    finally:
        gc.enable()
    return times


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """Computes the median time of each job."""
    return {name: statistics.median(taken) for name, taken in times.items()}


def ratios(times: dict[str, list[float]], base: str) -> dict[str, float]:
    """Computes the median over the rounds of the time of each job divided by that of the base in the same round."""
    return {
        name: statistics.median(time / base_time for time, base_time in zip(taken, times[base], strict=True))
        for name, taken in times.items()
    }


def peak_bytes(job: Job) -> int:
    """Measures the peak of memory that a job allocates."""
    job()
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        job()
    assert profile.profiler is not None
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
