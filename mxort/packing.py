"""Where ``Calibration`` was until 0.2: now mxort.conversion.weights. This name goes with 0.3."""

from mxort.conversion.weights import Calibration as Calibration
