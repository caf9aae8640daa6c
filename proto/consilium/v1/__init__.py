"""Version 1 of the wire contract: generated stubs. Regenerate with `proto/generate.sh`."""
