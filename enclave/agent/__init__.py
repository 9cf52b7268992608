"""The app's side of an enclave: keys at boot, evidence on request. The SDK socket comes later."""
