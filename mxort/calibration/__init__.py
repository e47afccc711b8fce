"""Running a model on data to learn what its weights are multiplied with."""
