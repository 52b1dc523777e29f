"""The parts of a stage, one file each; typed keyword-only arguments, no look-ups, no assets."""
