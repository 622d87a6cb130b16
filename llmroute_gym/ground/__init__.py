"""What everything stands on: signals, arrays, checks of arguments, files; imports no other room."""
