"""The Git endpoints: who may do what, and git's processes behind them."""
