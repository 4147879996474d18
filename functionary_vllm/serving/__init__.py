"""What serve.py is made of: the model and its engine, the socket, and the request to paste."""
