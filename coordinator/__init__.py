"""The coordinator: the service, the run, DGB and PCW on opened sums, the model and state store. No torch, no patients."""
