"""The server: a running batch, its queue, images of requests, and the OpenAI API over HTTP."""
