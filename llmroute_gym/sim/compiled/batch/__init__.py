"""What each scheduler puts into the next batch, one file per scheduler."""
