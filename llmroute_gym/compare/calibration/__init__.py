"""From a gateway's log to a profile whose simulated times are those of the log."""
