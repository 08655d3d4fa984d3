"""Operations that only pruning needs: gates, their penalties and losses, and parts of parameters that heads own."""
