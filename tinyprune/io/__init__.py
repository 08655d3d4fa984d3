"""What passes between the package and the outside: files, lines and bars on a terminal, tables."""
