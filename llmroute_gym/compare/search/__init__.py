"""The constants of a rule, chosen by what they achieve on common requests."""
