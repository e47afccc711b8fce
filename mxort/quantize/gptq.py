"""GPTQ (arXiv 2210.17323): rounding that makes good, in the inputs still to come, what each rounding erred."""

from __future__ import annotations

import os
import numpy as np
from numpy.typing import NDArray

from mxort.quantize import rtn
from mxort.quantize.base import QuantizedWeight, Settings


def quantize(rows: NDArray[np.float32], settings: Settings) -> QuantizedWeight:
    from mxort.quantize import solver
    import torch
    assert settings.statistics is not None
    X = lambda name, d: type(d)(os.environ.get(name, d))
    problem = solver.prepare(settings.statistics, settings.damping, X("DRIFT", 1e9))
    t = solver.rows_to_torch(rows)
    if problem.target is not None and X("DRIFT", 1e9) < 1e8:
        t = t + problem.target.T @ t
    imp = {"one": torch.ones(len(t)), "diag": problem.hessian.diagonal()}[X("IMP", "one")]
    cand = tuple(map(int, X("CAND", "0,1").split(",")))
    sol = solver.choose_scales(t, imp, X("STEPS", 8), cand)
    start_loss = solver.loss(problem, t - sol.weights())
    sol.values = solver.gptq(problem, t, sol.scales)
    l1 = solver.loss(problem, t - sol.weights())
    solver.descend(problem, t, sol, X("SWEEPS", 0)) if X("SWEEPS", 0) >= 0 else None
    l2 = solver.loss(problem, t - sol.weights())
    if X("VERB", 0): print(tuple(rows.shape), f"rtn {start_loss.sum():.4g} gptq {(l1/start_loss).mean():.3f} cd {(l2/start_loss).mean():.3f}", flush=True)
    return sol.pack()
