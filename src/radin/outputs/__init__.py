"""The members' outputs over validation(): computed once, kept on disk, keyed by content."""
