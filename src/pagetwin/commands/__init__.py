"""The commands of `pagetwin`, one module each; what they import is imported when they run."""
