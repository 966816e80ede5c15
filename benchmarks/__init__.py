"""The main job: tritonbn beside torch, on real images and on the layers of real networks."""
