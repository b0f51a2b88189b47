# What `make grade-image` builds: the course, to grade in. `make grade-locked` starts it without a network.
FROM python:3.12-slim
WORKDIR /course
COPY pyproject.toml constraints.txt PACKAGE.md LICENSE ./
COPY vqnotes vqnotes
# CPU builds of PyTorch: the others bring gigabytes of CUDA libraries.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    --constraint constraints.txt --editable ".[course,lab,test]"
COPY notebooks notebooks
COPY tools tools
# Nothing of the course is theirs to write; what Jupyter and matplotlib keep goes where `grade-locked` mounts memory.
ENV HOME=/tmp MPLBACKEND=Agg PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
USER nobody
ENTRYPOINT ["python", "tools/handouts.py", "grade"]
CMD ["/handed_in", "/grades"]
