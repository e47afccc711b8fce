"""Where ``inspect`` was until 0.2: now mxort.conversion.inspection. This name goes with 0.3."""

from mxort.conversion.inspection import inspect as inspect
