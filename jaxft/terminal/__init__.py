"""What a person sees of a command: its flags, its progress, its errors."""
