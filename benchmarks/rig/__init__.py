"""What servers are measured with: how they are started, an engine core without a model, a client, the floors."""
