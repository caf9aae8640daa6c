"""The institution's node: its loop, models, local training, differential privacy, data readers, policy, predict."""
