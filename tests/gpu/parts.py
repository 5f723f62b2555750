"""All parts, the most telling first, with their time limits; docs/gpu.md says what each one shows."""

from . import checks, making, speed, trainings, visiting
from .runner import Part

PARTS = (
    Part("facts", 60, checks.facts),
    Part("demo", 120, checks.demo),
    Part("device-tests", 150, checks.device_tests),
    Part("golden", 180, checks.golden),
    Part("gpu-tests", 120, checks.gpu_tests),
    Part("waits", 60, checks.waits),
    Part("efficiency", 300, speed.efficiency),
    Part("paper", 200, speed.paper),
    Part("calibration", 60, speed.calibration),
    Part("conversion", 180, making.conversion),
    Part("training-step", 90, making.training_step),
    Part("training", 120, making.training),
    Part("app", 90, visiting.app),
    Part("profile", 60, speed.profile),
)

TRAININGS = (
    Part("deep-conversion", trainings.CONVERSION_SECONDS, trainings.deep_conversion),
    Part("demo-conversion", trainings.CONVERSION_SECONDS, trainings.demo_conversion),
    Part("family", trainings.FAMILY_SECONDS, trainings.family),
)
"""Parts that run only when they are asked for, since they take longer than all others together."""
