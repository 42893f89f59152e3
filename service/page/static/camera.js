// The camera: a browser lends it to pages from HTTPS or from this machine alone, and its owner has to say yes.

/** Why there is no camera for this page; null where there may be one. */
export function whyNoCamera() {
  if (!window.isSecureContext) {
    return `A browser lends its camera to pages from HTTPS or from localhost alone, and this one came from `
      + `${location.origin}. Put TLS in front of the service, or open it on its own machine.`;
  }
  return navigator.mediaDevices?.getUserMedia ? null : "This browser has no camera to lend.";
}

export class Camera {
  constructor(video) {
    this.video = video;
    this.stream = null;
  }

  /** Start it; throws a sentence where it cannot be had. */
  async start() {
    try {
      const video = { facingMode: "environment", width: { ideal: 640 }, height: { ideal: 640 } };
      this.stream = await navigator.mediaDevices.getUserMedia({ video });
    } catch (error) {
      const refused = error.name === "NotAllowedError";
      throw new Error(refused ? "The camera was not allowed for this page." : `No camera: ${error.message}`);
    }
    this.video.srcObject = this.stream;
    await this.video.play();
  }

  stop() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
    this.video.srcObject = null;
  }

  /** The middle of what it sees now, as a JPEG file. */
  async take() {
    const side = Math.min(this.video.videoWidth, this.video.videoHeight);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [side, side];
    const [left, top] = [(this.video.videoWidth - side) / 2, (this.video.videoHeight - side) / 2];
    canvas.getContext("2d").drawImage(this.video, left, top, side, side, 0, 0, side, side);
    return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  }
}
