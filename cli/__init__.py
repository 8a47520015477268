"""The command line: parse, call the library, show the result. The only room that knows click and rich."""
