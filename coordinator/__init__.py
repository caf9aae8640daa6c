"""The coordinator: service, run, DGB and PCW on opened sums, model and state store. No torch, no patients."""
