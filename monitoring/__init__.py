"""Every metric by name, in one file; dashboards and alert rules. Does not know what is measured."""
