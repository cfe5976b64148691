"""`mae bench` beyond the engine: the stages alone, the front end alone, the service under load, and the limit."""
