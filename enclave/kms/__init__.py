"""The key management service: releases an app's keys to attested callers that the chain allows."""
