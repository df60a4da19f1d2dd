"""What a trial is, and how many of them run: alone or as one program."""
