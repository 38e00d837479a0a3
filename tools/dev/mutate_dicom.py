"""Damage DICOM files in every way and judge what is made of them.

    python tools/dev/mutate_dicom.py [--n 300] [--seed SEED]

Files of three vendors' habits and six transfer syntaxes are cut, their bytes flipped, lengths made hostile, tags taken away or given
other values. Each must end in one sentence or in a picture: that of the whole file, or the one that the damaged header itself
describes, which pydicom's own functions work out, or one with a sentence about what was assumed. Anything else is a defect: an
error that is no sentence, more than 20 seconds of processor time, a wrong picture without a word. A fresh seed is printed."""
import argparse
import io
import random
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi_lut

sys.path.insert(0, str(Path(__file__).resolve().parents[2]/'tests'))
import test_dicom
from cesm_nb.imaging import dicom

SECONDS = 20
VALUES = dict( # tag -> other values, some that fit and some that cannot
    BitsStored=[8, 10, 14, 16, 0, 99], HighBit=[7, 13, 15, 0], BitsAllocated=[8, 16, 32, 1, 0],
    PixelRepresentation=[1, 7], SamplesPerPixel=[3, 0], Rows=[1, 31, 60, 65, 65535,
                                                              0], Columns=[1, 47, 49, 65535, 0],
    PhotometricInterpretation=['MONOCHROME1', 'RGB', 'X'], WindowCenter=[0, 1000, 1e30, 'x'],
    WindowWidth=[0, -5, 1, 100, 1e-30], RescaleSlope=[0, -1, 2,
                                                      1e30], RescaleIntercept=[-1000, 1e30],
    VOILUTFunction=['SIGMOID', 'LINEAR_EXACT',
                    'CUBIC'], ImageLaterality=['R', 'B', ''], Laterality=['R', 'L'],
    ViewPosition=['MLO', 'ML',
                  ''], ImageType=[['ORIGINAL', 'PRIMARY', '', 'LOW_ENERGY'], ['A'],
                                  ''], PatientAge=['999Y', 'old'], PixelPaddingValue=[0, 4095, -1],
    NumberOfFrames=[0, 2,
                    99999], SOPClassUID=['1.2.3',
                                         ''], PatientOrientation=[['P', 'L'], ['A'],
                                                                  ''], PlanarConfiguration=[1])


class Hang(BaseException): "Too much processor time."


def originals(folder):
    "Whole files: bytes of each."
    import cv2
    from cesm_nb.synthetic.phantom import draw_image, plan_phantom
    breast = plan_phantom(12, seed=0).query("side == 'L'").iloc[0]
    picture = cv2.resize(
        draw_image(breast, 'CC', 'CM', size_px=160)[0], (48, 64), interpolation=cv2.INTER_AREA)
    names = 'ImplicitVRLittleEndian ExplicitVRLittleEndian ExplicitVRBigEndian RLELossless JPEGLSLossless JPEGLosslessSV1'.split(
    )
    for i, syntax in enumerate(getattr(test_dicom, n) for n in names):
        vendor = list(test_dicom.VENDORS.values())[i % 3]
        path = test_dicom.write(
            test_dicom.make(picture, (10, 12, 14)[i % 3], syntax, RescaleSlope=1,
                            RescaleIntercept=0, **vendor), folder/'a.dcm')
        if syntax.is_compressed and syntax.keyword != 'RLELossless':
            test_dicom.recompress(path, syntax)
        yield path.read_bytes()


def mutate(data, rng):
    "A damaged copy, and how it was damaged."
    kind = rng.choice(
        ['cut', 'flip', 'flip', 'length', 'tag', 'tag', 'tag', 'absent', 'pixels', 'insert'])
    out, at = bytearray(data), rng.randrange(132, len(data) - 8)
    head = min(
        len(data) - 8,
        data.find(b'\xe0\x7f\x10\x00') if b'\xe0\x7f\x10\x00' in data else 1500)
    if kind == 'cut': del out[rng.randrange(1, len(out)):]
    elif kind == 'flip':
        for _ in range(rng.randint(1, 4)): out[rng.randrange(132, head)] ^= 1 << rng.randrange(8)
    elif kind == 'length':
        at = rng.randrange(132, head)
        out[at:at + 4] = rng.choice(
            [b'\xff\xff\xff\x7f', b'\xff\xff\xff\xff', b'\0\0\0\0', b'\xfe\xff\x00\x00'])
    elif kind == 'pixels':
        for _ in range(8): out[rng.randrange(head, len(out))] ^= 1 << rng.randrange(8)
    elif kind == 'insert': out[at:at] = rng.randbytes(rng.randint(1, 40))
    else:
        ds, tag = pydicom.dcmread(io.BytesIO(data)), rng.choice([*VALUES])
        value, absent, kind = rng.choice(VALUES[tag]), kind == 'absent', f'{kind} {tag}'
        try:
            if absent: ds.pop(tag, None)
            else: setattr(ds, tag, value)
            ds.save_as(buffer := io.BytesIO())
        except Exception: return None, kind # pydicom does not write such a value
        out = buffer.getvalue()
    return bytes(out), kind


def described(data):
    "Pictures that a file describes, by pydicom alone: stored in any of eight ways; empty where it does not say."
    try:
        ds = dicom._parse(data)
        signed = bool(int(ds.get('PixelRepresentation') or 0))
        stored = dicom._decode_apart(data)
        unused = 8*stored.dtype.itemsize - int(ds.BitsStored)
        stored = (stored << unused) >> unused
        y = apply_voi_lut(apply_modality_lut(stored, ds), ds).astype(float)
        if 'WindowWidth' in ds or 'VOILUTSequence' in ds:
            bits = int(ds.BitsStored)
            low, high = (-2**(bits - 1), 2**(bits - 1) - 1) if signed else (0, 2**bits - 1)
            slope, intercept = float(ds.get('RescaleSlope')
                                     or 1), float(ds.get('RescaleIntercept') or 0)
            low, high = sorted((low*slope + intercept, high*slope + intercept))
            y = (y - low)/max(high - low, 1e-9)
        else: y = stored/(2**int(ds.BitsStored) - 1)
        if ds.PhotometricInterpretation == 'MONOCHROME1': y = 1 - y
        image = np.rint(255*np.clip(y, 0, 1))
        value, limit = ds.get('PixelPaddingValue'), ds.get('PixelPaddingRangeLimit')
        if value is not None:
            ends = sorted((int(value), int(value if limit is None else limit)))
            image[(stored >= ends[0]) & (stored <= ends[1])] = 0
        return [o[::v, ::h] for o in (image, image.T) for v in (1, -1) for h in (1, -1)]
    except Exception: return []


def judge(data, whole, name='a.dcm'):
    "What is made of a damaged file; a verdict that starts with DEFECT is one."
    def stop(*_): raise Hang
    old = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try: view = dicom.read_view(dicom.Upload(name, data), crop=False)
    except Hang: return f'DEFECT: more than {SECONDS} s'
    except ValueError as e:
        return 'refused' if name in str(e) and '\n' not in str(e) and len(
            str(e)) < 400 else f'DEFECT: {e!r}'
    except BaseException as e: return f'DEFECT: {type(e).__name__}: {e}'
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)
    same = lambda other: other.shape == view.image.shape and np.abs(view.image.astype(int) - other
                                                                    ).max() <= 1
    facts = (view.side, view.view, view.modality) == (whole.side, whole.view, whole.modality)
    if same(whole.image):
        return 'the same picture' if facts else 'the same picture, other facts as its header says'
    if any(same(p) for p in described(data)): return 'another picture, as its header says'
    return 'another picture, with a word' if view.notes else 'DEFECT: another picture without a word'


def run(n, seed, report=print):
    "Judge n damaged files: verdict -> how often."
    rng, counts = random.Random(seed), Counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        files = list(originals(Path(folder)))
        wholes = [dicom.read_view(dicom.Upload('a.dcm', f), crop=False) for f in files]
        while counts.total() < n:
            i = rng.randrange(len(files))
            data, kind = mutate(files[i], rng)
            if data is None or data == files[i]: continue
            verdict = judge(data, wholes[i])
            counts[verdict.split(':')[0] if verdict.startswith('DEFECT') else verdict] += 1
            if verdict.startswith('DEFECT'): report(f'file {i}, {kind}: {verdict[:300]}')
    return counts


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--n', type=int, default=300)
    ap.add_argument('--seed', type=int, default=random.SystemRandom().randrange(10**6))
    o = ap.parse_args()
    counts = run(o.n, o.seed)
    print(f'seed {o.seed}, {o.n} damaged files: ' + ', '.join(f'{k} {v}'
                                                              for k, v in counts.most_common()))
    sys.exit(any(k.startswith('DEFECT') for k in counts))


if __name__ == '__main__': main()
