"""The studies, one file each: its `STUDY` has everything that belongs to it alone."""
