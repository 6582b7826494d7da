"""Everything that knows where bytes are: local folders, object stores, the Hub."""
