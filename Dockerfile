# The app on a CPU, with both demo checkpoints built in: docs/hosting.md says how to build and run it.
FROM python:3.11-slim

# Hugging Face runs containers as this user
RUN useradd --create-home --uid 1000 user
WORKDIR /home/user/app

# PyPI's torch for Linux brings 2 GB of libraries for CUDA, which a CPU has no use for
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements.txt ./
RUN pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.txt)"
RUN pip install --no-cache-dir --requirement requirements.txt

COPY pyproject.toml README.md LICENSE ./
COPY .streamlit/ .streamlit/
COPY assets/ assets/
COPY subllm/ subllm/
COPY analysis/ analysis/
COPY app/ app/
RUN pip install --no-cache-dir --no-deps --editable .

USER user
ENV SUBLLM_HOME=/home/user/demo
RUN python -m subllm.demo demo
RUN python -m subllm.demo deep

ENV SUBLLM_PROFILE=public
ENV STREAMLIT_SERVER_ADDRESS=0.0.0.0
ENV STREAMLIT_SERVER_PORT=8501
EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD python -c "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"STREAMLIT_SERVER_PORT\"]}/_stcore/health', timeout=4)"
CMD ["python", "-m", "streamlit", "run", "app/main.py"]
