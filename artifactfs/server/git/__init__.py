"""The Git endpoints: they check the token, then run git's processes behind them."""
