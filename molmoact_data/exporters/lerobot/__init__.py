"""LeRobot datasets out: of an output, or of anything that has rows and pictures."""
