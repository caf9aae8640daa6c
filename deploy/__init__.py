"""The operator's `consilium` command and the local demo federation."""
