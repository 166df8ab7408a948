# The whole studio with the CPU build of torch. For CUDA, start from an image with CUDA and leave
# out the extra index URL.
FROM python:3.12-slim

# Made here, because not every builder gives a WORKDIR to the USER.
RUN useradd --create-home --uid 1000 studio && mkdir -p /home/studio/app/runs && chown -R studio /home/studio/app
USER 1000
WORKDIR /home/studio/app
ENV PATH=/home/studio/.local/bin:$PATH PYTHONUNBUFFERED=1 GRADIO_ANALYTICS_ENABLED=False GRADIO_SERVER_NAME=0.0.0.0

COPY --chown=1000 requirements.txt .
RUN pip install --user --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.txt
COPY --chown=1000 . .

EXPOSE 7860
# Runs are kept in /home/studio/app/runs: mount a volume there. Without --auth anybody who reaches the port has access.
CMD ["python", "app.py"]
