"""Operations of a layer between its input and its output."""
