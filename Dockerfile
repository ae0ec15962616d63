# The image of every node of a cluster: Ray's own, and slime-ray in it at the versions of constraints.txt.
#
#   docker build -t REGISTRY/slime-ray:0.2.0-ray2.60.0-py311 .
#
# The tag says which Ray and Python are inside; `slime-ray doctor --cluster FILE` compares them.
FROM rayproject/ray:2.60.0-py311-gpu

# The base image's user, `ray`, stays: nothing here runs as root.
WORKDIR /home/ray/slime_ray

COPY --chown=1000:100 constraints.txt pyproject.toml ./

# torch alone, because it is most of the image and changes least. constraints.txt names no build, so the index decides:
# on PyPI, torch 2.13.0 for Linux is the build for CUDA 13.0. For another build, an index that has this version of it:
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" -c constraints.txt torch

# What pyproject.toml asks for, in a layer that a change of the code leaves alone. ray[default] is named so that the
# needs of Ray's dashboard and job server are weighed together with ours.
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
      > /tmp/requirements.txt \
 && pip install --no-cache-dir -c constraints.txt -r /tmp/requirements.txt "ray[default]" \
 && rm /tmp/requirements.txt

COPY --chown=1000:100 . .
RUN pip install --no-cache-dir --no-deps -c constraints.txt . \
 && slime-ray --version

WORKDIR /home/ray
