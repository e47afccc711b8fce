"""``python -m tools.accuracy``: what each way of converting costs in accuracy, on two models."""
