"""A small table-top robot world with exact ground truth: images, metric depth, gripper pixel, success.

For the demo, for measuring labels and for training the embedded teachers. It says nothing about
accuracy on real video. Needs `pip install 'molmoact[sim]'` and software OpenGL (`MUJOCO_GL=egl`).
"""
